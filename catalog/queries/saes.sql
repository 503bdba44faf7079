-- Which SAEs are there, how good are they, and how far are people with their labels?
-- params: none
-- grain: one row per SAE version
with metrics as (
    select sae_id, max(value) filter (metric = 'l0') as l0, max(value) filter (metric = 'fvu') as fvu,
           max(value) filter (metric = 'loss_recovered_mean') as loss_recovered,
           max(value) filter (metric = 'dead_share') as dead_share
    from sae_metric group by all
),
labelled as (
    select sae_id, count(distinct feature) as n_labelled from label where action <> 'reject' group by all
)
select s.sae_id, s.family, s.version, s.sae_id = c.sae_id as is_current, s.architecture, s.model_id, s.n_features,
       m.l0, m.fvu, m.loss_recovered, m.dead_share, coalesce(l.n_labelled, 0) as n_labelled
from sae s join current_sae c using (family) left join metrics m on m.sae_id = s.sae_id
left join labelled l on l.sae_id = s.sae_id
order by s.family, s.version desc
