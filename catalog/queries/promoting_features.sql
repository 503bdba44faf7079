-- Which features make the model say a token?
-- params: token text, sae_id text = null, top int = 10, n int = 50
-- grain: one row per feature and promoted token
select l.sae_id, l.feature, c.name, l.token, l.logit, c.density
from feature_logit l join feature_card c using (sae_id, feature)
where l.sign = 1 and l.rank < $top and trim(lower(l.token)) = trim(lower($token))
  and l.sae_id = coalesce($sae_id, l.sae_id)
order by l.logit desc, l.sae_id, l.feature
limit $n
