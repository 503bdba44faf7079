-- Which features of one SAE point nearly the same way (duplicates, splits)?
-- params: sae_id text, cosine_above float = 0.85, n int = 100
-- grain: one row per pair of features
select n.feature, c1.name, n.other_feature, c2.name as other_name, n.score as decoder_cosine, j.score as coactivation
from neighbor n
left join neighbor j on j.sae_id = n.sae_id and j.feature = n.feature and j.kind = 'coactivation'
     and j.other_sae_id = n.other_sae_id and j.other_feature = n.other_feature
join feature_card c1 on c1.sae_id = n.sae_id and c1.feature = n.feature
join feature_card c2 on c2.sae_id = n.other_sae_id and c2.feature = n.other_feature
where n.sae_id = $sae_id and n.kind = 'decoder_cosine' and n.other_sae_id = n.sae_id
  and n.score > $cosine_above and n.feature < n.other_feature
order by n.score desc, n.feature
limit $n
