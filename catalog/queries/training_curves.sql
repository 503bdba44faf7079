-- How did training go: the points of every curve, or of those asked for, under the name of the SAE where it was
-- published. A step that was done twice, before and after a crash, counts as it was done last.
-- params: fingerprints text = '', most int = 1000
-- grain: one row per artifact and step, evenly thinned to about `most` an artifact
with points as (
    select * from train_progress
    where n_tokens is not null
      and ($fingerprints = '' or list_contains(string_split($fingerprints, ','), fingerprint))
    qualify row_number() over (partition by fingerprint, step order by created_at desc nulls last, run_id) = 1
),
numbered as (
    select *, row_number() over (partition by fingerprint order by step) as at,
           count(*) over (partition by fingerprint) as n
    from points
),
published as (select fingerprint, min(sae_id) as sae_id from sae group by all)
select p.fingerprint, s.sae_id, p.run_id, p.step, p.n_tokens, p.loss, p.loss_terms, p.fvu, p.l0, p.dead_share,
       p.learning_rate, p.tokens_per_second, p.created_at
from numbered p left join published s using (fingerprint)
where p.at = p.n or (p.at - 1) % greatest(1, ceil(p.n / $most)::bigint) = 0
order by p.fingerprint, p.step
