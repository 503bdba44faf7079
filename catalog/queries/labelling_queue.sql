-- What should I label next: alive, explained badly or not at all, not labelled by a person; the most useful first.
-- params: sae_id text, n int = 50
-- grain: one row per feature
select feature, name, explanation_score, density, act_max, top_token
from feature_card
where sae_id = $sae_id and status = 'alive' and name_source is distinct from 'human'
order by abs(coalesce(explanation_score, 0.5) - 0.5), sequence_density desc, feature
limit $n
