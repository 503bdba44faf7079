-- Which features fire on a token selectively, not merely often?
-- params: token text, sae_id text = null, n int = 20
-- grain: one row per feature that has the token among those it fires on
select t.sae_id, t.feature, c.name, t.token, t.p_fire_given_token, t.p_token_given_fire, t.lift
from feature_token t join feature_card c using (sae_id, feature)
where t.role = 'at' and trim(lower(t.token)) = trim(lower($token)) and t.sae_id = coalesce($sae_id, t.sae_id)
order by t.lift * t.p_fire_given_token desc nulls last, t.sae_id, t.feature
limit $n
