create table records (key int primary key, value text not null);
insert into records select n, 'value ' || n from generate_series(1, 1000) as n;

-- A query that takes its time: 20 ms for each answer.
create view slow_records as select key, value from records, pg_sleep(0.02);
