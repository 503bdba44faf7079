-- Which features have a label or an explanation with these words in it? Spelling may be a little off. The best first:
-- the whole text as it was typed, then how like its words are, then people's words before machines', then short texts.
-- params: text text, sae_id text = null, like_above float = 0.88, n int = 50
-- grain: one row per feature and text
with said as (
    select sae_id, feature, text, author as source from label
    where action <> 'reject' and text is not null and sae_id = coalesce($sae_id, sae_id)
    union all
    select sae_id, feature, text, 'machine' from explanation
    where source is distinct from 'human' and sae_id = coalesce($sae_id, sae_id)
),
texts as materialized (
    select sae_id, feature, any_value(text) as text, lower(text) as lowered, source from said group by all
),
spelled as materialized (  -- the same text may stand at thousands of features
    select distinct lowered, string_split(lowered, ' ') as written from texts
),
asked as (select unnest(list_distinct(regexp_extract_all(lower($text), '[\pL\pN_]+'))) as word),
vocabulary as (  -- as written, with its quotes and brackets, and without them
    select written, trim(written, '"''`“”‘’«»()[]{}<>.,:;!?…–-') as word
    from (select distinct unnest(written) as written from spelled)
),
likeness as materialized (
    select v.written, a.word as asked_word, jaro_winkler_similarity(v.word, a.word) as likeness
    from vocabulary v, asked a
    where jaro_winkler_similarity(v.word, a.word) >= $like_above
),
found as (
    select lowered, sum(best) / greatest((select count(*) from asked), 1) as likeness
    from (
        select p.lowered, l.asked_word, max(l.likeness) as best
        from (select lowered, unnest(written) as written from spelled) p join likeness l using (written) group by all
    )
    group by all
),
scored as (
    select lowered, coalesce(f.likeness, 0) + contains(lowered, lower(trim($text)))::int as score
    from spelled left join found f using (lowered)
    where trim($text) <> '' and (f.likeness is not null or contains(lowered, lower(trim($text))))
)
select t.sae_id, t.feature, t.text, t.source, s.score
from texts t join scored s using (lowered)
order by s.score desc, t.source = 'machine', length(t.text), t.sae_id, t.feature
limit $n
