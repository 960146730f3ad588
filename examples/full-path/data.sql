create table data (foo text primary key, value int not null);
insert into data values ('bar', 1), ('baz', 2), ('qux', 3);
