-- Which features are near one feature, in which sense, and what are they called?
-- params: sae_id text, feature int, n int = 10
-- grain: one row per kind and neighbour
select n.kind, n.rank, n.other_sae_id, n.other_feature, n.score, c.name, c.top_token
from neighbor n
left join feature_card c on c.sae_id = n.other_sae_id and c.feature = n.other_feature
where n.sae_id = $sae_id and n.feature = $feature and n.rank < $n
order by n.kind, n.rank
