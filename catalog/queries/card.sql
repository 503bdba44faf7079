-- What is known of one feature?
-- params: sae_id text, feature int
-- grain: one row, or none if there is no such feature
select * from feature_card where sae_id = $sae_id and feature = $feature
