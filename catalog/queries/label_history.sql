-- What was said of several features (their numbers, with commas), by whom, and what was taken back?
-- params: sae_id text, features text
-- grain: one row per act of labelling, undo aside
with asked as (
    select unnest(string_split($features, ','))::int as f
)
select e.event_id, e.feature, e.created_at, e.author, e.action, e.text, e.tags, e.confidence, e.safety, e.note,
       exists (select 1 from label_event u where u.action = 'undo' and u.undoes = e.event_id) as is_undone
from label_event e
where e.sae_id = $sae_id and e.action <> 'undo' and e.feature in (select f from asked)
order by e.feature, e.created_at desc, e.event_id
