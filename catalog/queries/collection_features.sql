-- What is in a collection?
-- params: collection_id text
-- grain: one row per feature in it
with member as materialized (
    select * from collection e
    where collection_id = $collection_id and action <> 'undo'
      and not exists (select 1 from collection u where u.action = 'undo' and u.undoes = e.event_id)
    qualify row_number() over (partition by sae_id, feature order by created_at desc, event_id desc) = 1
            and action = 'put'
)
select m.sae_id, m.feature, c.name, c.name_source, c.status, c.density, m.note, m.author, m.created_at
from member m left join feature_card c using (sae_id, feature)
order by m.created_at, m.sae_id, m.feature
