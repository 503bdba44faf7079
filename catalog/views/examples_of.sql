-- The examples of one feature, strongest range first: from examples_of('gpt2/L8@2', 3, 20)
create macro examples_of(the_sae, the_feature, n) as table
select * from example where sae_id = the_sae and feature = the_feature
order by bucket_high desc nulls last, rank limit n;
