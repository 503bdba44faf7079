-- The best-scored explanation of a feature by a machine; a person's text entered for scoring stays out.
-- grain: one row per explained feature
create view best_explanation as
with scored as (
    select explanation_id, avg(score) as score, string_agg(scorer, '+' order by scorer) as scorers
    from explanation_score group by all
)
select x.*, s.score, s.scorers
from explanation x left join scored s using (explanation_id)
where x.source is distinct from 'human'
qualify row_number() over (partition by x.sae_id, x.feature order by s.score desc nulls last, x.explanation_id) = 1;
