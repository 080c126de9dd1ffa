-- Take expired jobs out of the indexes and of what is counted.
-- ARGV: id and subject of each
for i = 1, #ARGV, 2 do forget(ARGV[i], ARGV[i + 1]) end
