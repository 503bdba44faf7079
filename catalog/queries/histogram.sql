-- How are the activations (or logit effects) of one feature distributed?
-- params: sae_id text, feature int, kind text = 'act'
-- grain: one row per bin
select unnest(edges[:-2]) as low, unnest(edges[2:]) as high, unnest(counts) as n
from histogram
where sae_id = $sae_id and feature = $feature and kind = $kind
