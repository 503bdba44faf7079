-- Where each example stands in its document: characters char_start to char_end of the text are its window,
-- token_char_start to token_char_end its token. Null where the tokenizer tells no offsets.
-- grain: one row per example
create view example_place as
with found as (
    select e.sae_id, e.feature, e.example_id, e.bucket, e.rank, e.act, e.dataset_id, e.sequence_id, e.position,
           e.window_start, e.window_end, s.document_id as first_document, s.document_ids, s.document_starts,
           s.document_chars, s.token_chars,
           len(list_filter(s.document_starts, lambda start: start <= e.position)) as nth
    from example e join sequence s using (dataset_id, sequence_id)
),
counted as (
    select *, coalesce(document_ids[nth], first_document) as document_id, document_starts[nth] as first,
           document_chars[nth] as base
    from found
)
select c.sae_id, c.feature, c.example_id, c.bucket, c.rank, c.act, c.dataset_id, c.document_id, d.uri, d.sha256,
       base + coalesce(list_sum(token_chars[first + 1 : window_start]), 0) as char_start,
       base + coalesce(list_sum(token_chars[first + 1 : window_end]), 0) as char_end,
       base + coalesce(list_sum(token_chars[first + 1 : position]), 0) as token_char_start,
       base + coalesce(list_sum(token_chars[first + 1 : position + 1]), 0) as token_char_end
from counted c left join document d on d.dataset_id = c.dataset_id and d.document_id = c.document_id;
