-- The current label of each person for each feature: the last one that was not undone, skips and flags aside.
-- grain: one row per (sae_id, feature, author)
create view label as
select e.* from label_event e
where e.action in ('accept', 'edit', 'write', 'reject', 'carry', 'confirm_carry')
  and not exists (select 1 from label_event u where u.action = 'undo' and u.undoes = e.event_id)
qualify row_number() over (partition by sae_id, feature, author order by created_at desc, event_id desc) = 1;
