-- Which collections of features did people make?
-- params: none
-- grain: one row per collection
with member as (
    select * from collection e
    where action <> 'undo' and not exists (select 1 from collection u where u.action = 'undo' and u.undoes = e.event_id)
    qualify row_number() over (
        partition by collection_id, sae_id, feature order by created_at desc, event_id desc
    ) = 1 and action = 'put'
)
select collection_id, count(*) as n_features, count(distinct sae_id) as n_saes, max(created_at) as last_added_at,
       string_agg(distinct author, ', ' order by author) as authors
from member group by all
order by collection_id
