-- What are several features (their numbers, with commas) called, by whom, and how good is the name?
-- params: sae_id text, features text
-- grain: one row per feature
with asked as (
    select unnest(string_split($features, ','))::int as f
)
select feature, name, name_source, n_authors, agreement, safety, tags, explanation, interpretable, score_gap, top_token
from feature_card
where sae_id = $sae_id and feature in (select f from asked)
order by feature
