-- Where do several features (their numbers, with commas) fire: examples with the tokens of their windows?
-- params: sae_id text, features text
-- grain: one row per example
with asked as (
    select unnest(string_split($features, ','))::int as f
)
select e.feature, e.bucket, e.bucket_low, e.bucket_high, e.rank, e.act, e.position, e.window_start,
       e.fire_positions, e.fire_acts, e.held_out, d.uri, s.tokens[e.window_start + 1 : e.window_end] as tokens
from example e
join sequence s using (dataset_id, sequence_id)
left join document d on d.dataset_id = s.dataset_id and d.document_id = coalesce(
    s.document_ids[len(list_filter(s.document_starts, lambda start: start <= e.position))], s.document_id)
where e.sae_id = $sae_id and e.feature in (select f from asked)
order by e.feature, case e.bucket when 'top' then 0 when 'random' then 6 when 'near_miss' then 7 when 'negative' then 8
                         else 6 - e.bucket[2]::int end, e.rank
