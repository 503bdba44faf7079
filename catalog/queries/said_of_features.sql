-- What was said of several features (their numbers, with commas), by machines and people, in Neuronpedia's words?
-- params: sae_id text, features text
-- grain: one row per explanation or current label
with asked as (
    select unnest(string_split($features, ','))::int as f
)
select feature, text as description, coalesce(method, source) as "typeName", model as "explanationModelName",
       null as "authorId"
from explanation
where sae_id = $sae_id and source is distinct from 'human' and feature in (select f from asked)
union all
select feature, text, 'human', null, author from label
where sae_id = $sae_id and action <> 'reject' and feature in (select f from asked)
order by feature, "authorId" nulls first, description, "typeName"
