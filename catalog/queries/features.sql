-- Which features does an SAE have? Filtered by text in the name, by a token they fire on, by status; in a chosen order.
-- params: sae_id text, search text = null, token text = null, status text = null, sort text = 'density', n int = 50
-- grain: one row per feature
select feature, status, name, name_source, top_tokens_at, density, act_max, delta_ce_linear, reconstructive,
       explanation_score, safety, agreement
from feature_card
left join (
    select feature, list(token order by rank) as top_tokens_at,
           bool_or(trim(lower(token)) = trim(lower($token))) as fires_on_token
    from feature_token where sae_id = $sae_id and role = 'at' group by all
) using (feature)
where sae_id = $sae_id
  and ($status is null or status = $status)
  and ($token is null or fires_on_token)
  and ($search is null or contains(lower(name), lower($search)) or contains(lower(explanation), lower($search))
       or contains(lower(array_to_string(top_tokens_at, ' ')), lower($search)))
order by case $sort when 'feature' then feature end,
         case $sort when 'act_max' then act_max when 'delta_ce_linear' then delta_ce_linear
                    when 'explanation_score' then explanation_score when 'reconstructive' then reconstructive
                    when 'density' then density end desc nulls last,
         feature
limit $n
