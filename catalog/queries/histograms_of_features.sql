-- How are the activations of several features (their numbers, with commas) distributed?
-- params: sae_id text, features text, kind text = 'act'
-- grain: one row per feature
with asked as (
    select unnest(string_split($features, ','))::int as f
)
select feature, edges, counts from histogram
where sae_id = $sae_id and kind = $kind and feature in (select f from asked)
order by feature
