-- After a retrain: which labels carry over by themselves, which need a look, which are lost?
-- params: old_sae_id text, new_sae_id text
-- grain: one row per label of the old version
select l.text, l.author, l.feature as old_feature, m.feature_b as new_feature, m.decoder_cosine, m.act_correlation,
       case when m.feature_b is null or m.decoder_cosine < 0.5 then 'lost'
            when m.mutual_best and m.decoder_cosine >= 0.9 and m.act_correlation >= 0.8
                 and m.decoder_cosine - m.runner_up_cosine >= 0.1 and coalesce(l.safety, 0) = 0 then 'auto'
            else 'review' end as carry
from label l left join match m on m.sae_a = l.sae_id and m.feature_a = l.feature and m.sae_b = $new_sae_id
where l.sae_id = $old_sae_id and l.action <> 'reject'
order by carry, m.decoder_cosine, l.feature
