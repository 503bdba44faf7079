-- A feature with its name resolved: a person's label wins over a machine's explanation.
-- interpretable: held-out detection score of that name; score_gap: its score on the top bucket minus on q1.
-- grain: one row per feature
create view feature_card as
with latest as (
    select * from label where action <> 'reject'
    qualify row_number() over (partition by sae_id, feature order by created_at desc, event_id desc) = 1
),
detected as (
    select x.sae_id, x.feature, x.text, avg(s.score) as interpretable,
           avg((s.by_bucket ->> '$.top')::double - (s.by_bucket ->> '$.q1')::double) as score_gap
    from explanation x join explanation_score s using (explanation_id)
    where s.scorer = 'detection' group by all
)
select f.*, coalesce(l.text, b.text) as name,
       case when l.text is not null then 'human' when b.text is not null then 'machine' end as name_source,
       a.n_authors, a.agreement, l.confidence, a.safety_high as safety, l.tags,
       b.text as explanation, b.score as explanation_score, d.interpretable, d.score_gap
from feature f
left join latest l using (sae_id, feature)
left join label_agreement a using (sae_id, feature)
left join best_explanation b using (sae_id, feature)
left join detected d on d.sae_id = f.sae_id and d.feature = f.feature and d.text = coalesce(l.text, b.text);
