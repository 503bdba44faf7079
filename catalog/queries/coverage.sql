-- How far are people with their labels: in features, and in firings, which is what a reader of text will meet?
-- params: none
-- grain: one row per SAE version
with labelled as (
    select distinct sae_id, feature from label where action <> 'reject'
)
select f.sae_id, count(*) as n_features, count(*) filter (f.status <> 'dead') as n_living,
       count(l.feature) as n_labelled, count(l.feature) / count(*) as share_of_features,
       coalesce(sum(f.n_fires) filter (l.feature is not null), 0) / nullif(sum(f.n_fires), 0) as share_of_firings
from feature f left join labelled l using (sae_id, feature)
group by all order by f.sae_id
