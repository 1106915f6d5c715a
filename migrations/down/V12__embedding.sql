DROP VIEW wall.embedding, wall.embedding_vector;
DROP TABLE casebook.embedding, casebook.embedding_vector;
DROP FUNCTION casebook.forget_vector();
