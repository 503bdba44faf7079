-- Which questions did people keep, and what is each?
-- params: name text = null
-- grain: one row per saved query
select query_id, name, sql, note, author, created_at
from saved_query e
where action <> 'undo' and not exists (select 1 from saved_query u where u.action = 'undo' and u.undoes = e.event_id)
qualify row_number() over (partition by query_id order by created_at desc, event_id desc) = 1
        and action = 'put' and query_id = coalesce($name, query_id)
order by query_id
