-- Which tokens go with one feature: where it fires, before, and after?
-- params: sae_id text, feature int, n int = 10
-- grain: one row per role and token
select role, rank, token, n_fires, p_token_given_fire, p_fire_given_token, lift, act_mean
from feature_token
where sae_id = $sae_id and feature = $feature and rank < $n
order by role, rank
