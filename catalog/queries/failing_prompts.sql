-- Which features push the wrong answer in failing prompts, compared with the passing ones of the suite?
-- params: suite text, n int = 20
-- grain: one row per feature
select tf.sae_id, tf.feature, c.name,
       count(distinct t.trace_id) filter (t.outcome = 'fail') as n_fail,
       avg(tf.attribution) filter (t.outcome = 'fail') as attribution_fail,
       avg(tf.attribution) filter (t.outcome = 'pass') as attribution_pass,
       avg(tf.ablation_delta) filter (t.outcome = 'fail') as fix
from trace t join trace_feature tf using (trace_id) join feature_card c using (sae_id, feature)
where t.suite = $suite
group by all having n_fail >= 1
order by coalesce(attribution_fail, 0) - coalesce(attribution_pass, 0) desc, tf.sae_id, tf.feature
limit $n
