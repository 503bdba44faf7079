-- Which features are near several others (their numbers, with commas), and what are they called?
-- params: sae_id text, features text, n int = 8
-- grain: one row per feature, kind and neighbour
with asked as (
    select unnest(string_split($features, ','))::int as f
)
select n.feature, n.kind, n.rank, n.other_sae_id, n.other_feature, n.score, c.name, c.top_token
from neighbor n
left join feature_card c on c.sae_id = n.other_sae_id and c.feature = n.other_feature
where n.sae_id = $sae_id and n.rank < $n and n.feature in (select f from asked)
order by n.feature, n.kind, n.rank
