-- The best-scored explanation of a feature by a machine; a person's text entered for scoring stays out. Of those that
-- are scored alike, one made from the features as they are now comes before one of an earlier description.
-- grain: one row per explained feature
create view best_explanation as
with scored as (
    select explanation_id, avg(score) as score, string_agg(scorer, '+' order by scorer) as scorers
    from explanation_score group by all
)
select x.*, s.score, s.scorers
from explanation x
left join scored s using (explanation_id)
left join (select sae_id, feature, fingerprint as described from feature) f using (sae_id, feature)
where x.source is distinct from 'human'
qualify row_number() over (
    partition by x.sae_id, x.feature
    order by s.score desc nulls last, x.examples_sha256 is not distinct from f.described desc, x.explanation_id
) = 1;
