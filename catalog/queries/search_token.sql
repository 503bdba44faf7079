-- Which features fire on a token (or have it before or after their firings), the most selective first? The token as
-- typed or in small letters, with or without a space before it.
-- params: token text, role text = 'at', sae_id text = null, n int = 50
-- grain: one row per feature and token
with hit as (
    -- one equality at a time: Parquet's dictionaries answer it; a list of spellings is compared row by row
    from feature_token where token = $token and role = $role
    union all
    from feature_token where token = ' ' || $token and role = $role
    union all
    from feature_token where token = lower($token) and role = $role and lower($token) <> $token
    union all
    from feature_token where token = ' ' || lower($token) and role = $role and lower($token) <> $token
)
select sae_id, feature, token, rank, p_fire_given_token, p_token_given_fire, lift from hit
where sae_id = coalesce($sae_id, sae_id)
order by lift * p_fire_given_token desc nulls last, sae_id, feature, token
limit $n
