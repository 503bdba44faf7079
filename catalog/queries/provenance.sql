-- Where did the numbers of a feature come from: the runs that made them, and what those read.
-- params: sae_id text, feature int
-- grain: one row per artifact read
select f.feature, r.step, r.flow, r.trigger, r.code_version, r.started_at, l.kind, l.uri, left(l.sha256, 12) as sha256
from feature f join run r using (fingerprint) join lineage l using (run_id)
where f.sae_id = $sae_id and f.feature = $feature and r.state = 'finished' and l.direction = 'in'
order by r.started_at, l.kind, l.uri
