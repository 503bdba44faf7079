-- What drifted since the previous measurement on the same data set? Counts are of sequences: firing comes in bursts.
-- params: dataset_id text, z_above float = 6, n int = 50
-- grain: one row per feature whose sequence density changed
with measured as (
    select fingerprint, min(ended_at) as measured_at from run where state = 'finished' group by all
),
recent as (
    select feature_stat.*,
           row_number() over (partition by sae_id, feature, dataset_id order by measured_at desc) as age
    from feature_stat join measured using (fingerprint) where dataset_id = $dataset_id
),
change as (
    select new.sae_id, new.feature, old.sequence_density as before, new.sequence_density as now,
           log2((new.n_sequences_fired + 0.5) / (new.n_sequences + 1))
             - log2((old.n_sequences_fired + 0.5) / (old.n_sequences + 1)) as log2_ratio,
           (new.n_sequences_fired + old.n_sequences_fired) / (new.n_sequences + old.n_sequences) as pooled,
           new.n_sequences as n_new, old.n_sequences as n_old
    from recent new join recent old using (sae_id, feature, dataset_id) where new.age = 1 and old.age = 2
),
scored as (
    select *, (now - before) / sqrt(greatest(pooled * (1 - pooled) * (1 / n_new + 1 / n_old), 1e-18)) as z from change
)
select s.sae_id, s.feature, c.name, s.before, s.now, s.log2_ratio, s.z
from scored s join feature_card c using (sae_id, feature)
where abs(s.z) > $z_above
order by abs(s.log2_ratio) desc, s.sae_id, s.feature
limit $n
