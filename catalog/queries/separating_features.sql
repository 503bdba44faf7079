-- Which features separate the two data sets of a contrast, and are not just dense?
-- params: contrast_id text, q_below float = 0.01, density_below float = 0.05, n int = 25
-- grain: one row per feature
select cf.feature, c.name, round(cf.auc, 3) as auc, cf.rate_positive, cf.rate_negative, cf.q_value, c.safety
from contrast_feature cf join feature_card c using (sae_id, feature)
where cf.contrast_id = $contrast_id and cf.q_value < $q_below and c.density < $density_below
order by cf.auc desc, cf.feature
limit $n
