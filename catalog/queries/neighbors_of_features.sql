-- Which features are near several others (their numbers, with commas), and in which sense?
-- params: sae_id text, features text, n int = 8
-- grain: one row per feature, kind and neighbour
with asked as (
    select unnest(string_split($features, ','))::int as f
)
select feature, kind, rank, other_sae_id, other_feature, score from neighbor
where sae_id = $sae_id and rank < $n and feature in (select f from asked)
order by feature, kind, rank
