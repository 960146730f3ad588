-- What the store says of a product, kept: empty at first.
create table products (
  id int primary key,
  title text not null,
  price numeric not null,
  category text not null,
  description text not null,
  rating jsonb not null
);
