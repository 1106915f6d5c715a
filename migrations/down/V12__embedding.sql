DROP VIEW wall.embedding, wall.embedding_vector;
DROP TABLE casebook.embedding_vector, casebook.embedding;
