-- Which tokens go with several features (their numbers, with commas): at, before and after their firings?
-- params: sae_id text, features text, n int = 10
-- grain: one row per feature, role and token
with asked as (
    select unnest(string_split($features, ','))::int as f
)
select feature, role, rank, token, n_fires, p_token_given_fire, p_fire_given_token, lift from feature_token
where sae_id = $sae_id and rank < $n and feature in (select f from asked)
order by feature, role, rank
