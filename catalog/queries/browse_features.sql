-- Which features of an SAE fit a filter: status, density, label state, text in names, a token; in a chosen order.
-- params: sae_id text, status text = null, labelled text = null, low float = 0, high float = 1, search text = null, token text = null, sort text = 'feature', n int = 5000
-- grain: one row per feature
with fires_on as (
    select distinct feature from feature_token
    where sae_id = $sae_id and role = 'at' and contains(lower(token), lower(coalesce($token, '')))
          and $token is not null
),
found as (
    select * from feature_card
    where sae_id = $sae_id and density between $low and $high
      and ($status is null or status = $status)
      and ($labelled is null
           or ($labelled = 'labelled' and name_source = 'human')
           or ($labelled = 'unlabelled' and name_source is distinct from 'human')
           or ($labelled = 'explained' and explanation is not null)
           or ($labelled = 'disputed' and agreement = 'disputed'))
      and ($token is null or feature in (select feature from fires_on))
      and ($search is null or contains(lower(name), lower($search)) or contains(lower(explanation), lower($search))
           or contains(lower(array_to_string(tags, ' ')), lower($search))
           or contains(lower(top_token), lower($search))
           or contains(lower(array_to_string(top_tokens, ' ')), lower($search)))
)
select feature, status, name, name_source, agreement, safety, tags, top_token, top_tokens[:5] as promoted, density,
       act_max, act_quantiles, reconstructive, delta_ce_linear, token_entropy, interpretable,
       count(*) over () as n_found
from found
order by case $sort when 'name' then lower(name) end nulls last,
         case $sort when 'density' then density when 'act_max' then act_max when 'reconstructive' then reconstructive
                    when 'delta_ce_linear' then abs(delta_ce_linear) when 'interpretable' then interpretable
                    when 'safety' then safety end desc nulls last,
         case $sort when 'rarest' then density when 'token_entropy' then token_entropy end nulls last,
         feature
limit $n
