-- Which features are near one feature, in which sense, and what are they called?
-- params: sae_id text, feature int, n int = 10
-- grain: one row per kind and neighbour
with near as materialized (
    select kind, rank, other_sae_id, other_feature, score from neighbor
    where sae_id = $sae_id and feature = $feature and rank < $n
),
asked as materialized (  -- the few, before the best of each is chosen: feature_card would choose for all
    select distinct other_sae_id as sae_id, other_feature as feature from near
),
said as (
    select * from label semi join asked using (sae_id, feature) where action <> 'reject'
    qualify row_number() over (partition by sae_id, feature order by created_at desc, event_id desc) = 1
),
explained as (
    select * from explanation semi join asked using (sae_id, feature) where source is distinct from 'human'
),
scored as (
    select explanation_id, avg(score) as score from explanation_score semi join explained using (explanation_id)
    group by all
),
best as (
    select * from explained left join scored using (explanation_id)
    qualify row_number() over (partition by sae_id, feature order by score desc nulls last, explanation_id) = 1
)
select n.kind, n.rank, n.other_sae_id, n.other_feature, n.score, coalesce(s.text, b.text) as name, f.top_token
from near n
left join said s on s.sae_id = n.other_sae_id and s.feature = n.other_feature
left join best b on b.sae_id = n.other_sae_id and b.feature = n.other_feature
left join (select sae_id, feature, top_token from feature semi join asked using (sae_id, feature)) f
       on f.sae_id = n.other_sae_id and f.feature = n.other_feature
order by n.kind, n.rank
