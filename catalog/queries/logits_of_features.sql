-- Which tokens do several features (their numbers, with commas) promote and suppress?
-- params: sae_id text, features text, n int = 10
-- grain: one row per feature, sign and token
with asked as (
    select unnest(string_split($features, ','))::int as f
)
select feature, sign, rank, token, logit from feature_logit
where sae_id = $sae_id and rank < $n and feature in (select f from asked)
order by feature, sign desc, rank
