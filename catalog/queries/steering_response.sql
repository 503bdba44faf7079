-- What does steering one feature do, and what does it cost: effect against damage by dose.
-- params: sae_id text, feature int
-- grain: one row per operation, strength and metric
with measured as (
    select steer_id, unnest(map_entries(effect)) as entry from steer
)
select ed.op, ed.strength, m.entry.key as metric, avg(m.entry.value) as effect,
       avg(s.steered_nll - s.base_nll) as nll_cost, avg(s.kl_mean) as kl, avg(s.repetition) as repetition, count(*) as n
from steer_edit ed join steer s using (steer_id) left join measured m using (steer_id)
where ed.sae_id = $sae_id and ed.feature = $feature
group by all
order by ed.op, ed.strength, metric
