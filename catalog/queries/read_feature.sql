-- What does a feature fire on: a few lines from every part of its range.
-- params: sae_id text, feature int, per_bucket int = 2
-- grain: one row per example
select bucket, round(act, 2) as act, left_text || '[' || token || ']' || right_text as context
from example
where sae_id = $sae_id and feature = $feature
qualify row_number() over (partition by bucket order by rank) <= $per_bucket
order by bucket_high desc nulls last, bucket, rank
