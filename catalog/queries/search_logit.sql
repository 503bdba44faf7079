-- Which features promote a token most (or suppress it, with sign = -1)? The token as for search_token.
-- params: token text, sign int = 1, sae_id text = null, n int = 50
-- grain: one row per feature and token
with hit as (
    -- one equality at a time: Parquet's dictionaries answer it; a list of spellings is compared row by row
    from feature_logit where token = $token and sign = $sign
    union all
    from feature_logit where token = ' ' || $token and sign = $sign
    union all
    from feature_logit where token = lower($token) and sign = $sign and lower($token) <> $token
    union all
    from feature_logit where token = ' ' || lower($token) and sign = $sign and lower($token) <> $token
)
select sae_id, feature, token, rank, logit from hit
where sae_id = coalesce($sae_id, sae_id)
order by abs(logit) desc, sae_id, feature, token
limit $n
