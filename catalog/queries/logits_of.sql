-- Which tokens does one feature promote and suppress directly?
-- params: sae_id text, feature int, n int = 10
-- grain: one row per sign and token
select sign, rank, token, logit
from feature_logit
where sae_id = $sae_id and feature = $feature and rank < $n
order by sign desc, rank
