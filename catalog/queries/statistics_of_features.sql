-- What was measured of several features (their numbers, with commas)?
-- params: sae_id text, features text
-- grain: one row per feature
with asked as (
    select unnest(string_split($features, ','))::int as f
)
select * from feature
where sae_id = $sae_id and feature in (select f from asked)
order by feature
