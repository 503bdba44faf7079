-- Which alarms were raised since a moment, and which text set them off?
-- params: since text
-- grain: one row per alarm and example
select m.name, r.ended_at, e.value, e.baseline, e.z, x.left_text || '[' || x.token || ']' || x.right_text as context
from monitor_event e join monitor m using (monitor_id, fingerprint) join run r using (fingerprint)
left join example x on x.sae_id = m.sae_id and x.feature = m.feature and list_contains(e.example_ids, x.example_id)
where e.fired and r.state = 'finished' and r.ended_at > $since::timestamp
order by e.z desc, m.name
