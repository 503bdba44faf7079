-- Where do two people disagree, and what did the machine say?
-- params: sae_id text = null
-- grain: one row per feature and pair of people
select a.sae_id, a.feature, a.author as author_a, a.text as text_a, b.author as author_b, b.text as text_b,
       a.safety is distinct from b.safety as is_safety_conflict, c.explanation
from label a
join label b on a.sae_id = b.sae_id and a.feature = b.feature and a.author < b.author
join feature_card c on c.sae_id = a.sae_id and c.feature = a.feature
where a.sae_id = coalesce($sae_id, a.sae_id)
  and (jaccard(lower(a.text), lower(b.text)) < 0.6 or a.safety is distinct from b.safety)
order by a.sae_id, a.feature, author_a, author_b
