-- What is known of several features (their numbers, with commas)?
-- params: sae_id text, features text
-- grain: one row per feature
with asked as (
    select unnest(string_split($features, ','))::int as f
)
select c.* from feature_card c
where c.sae_id = $sae_id and c.feature in (select f from asked)
order by c.feature
