/* Row 5: being superseded is a mark in the own epoch file that nobody ever takes back.
 *
 * The taker links its epoch file, then writes S into every lower one, then acts. An owner checks by
 * looking into its own file. Numbers are unique (publish.pml); writers may stop anywhere.
 *
 * Promise: once the owner of an epoch passed its check, no owner of a lower epoch passes one.
 *
 * Wrong: CURRENT_FILE  one mutable file holds the number; whoever finds a lower one there writes its
 *                      own, and the check is whether it still stands there
 */
#define NODES 3
#define EPOCHS 4
#define CHECKS 2               /* by each owner, apart by any time */

byte linked = 0;               /* the highest epoch file */
bool marked[EPOCHS + 1];       /* byte 0 of each: S */
byte current = 0;              /* the content of CURRENT_FILE */
byte passed = 0;               /* the highest epoch that passed its check */

#ifdef CURRENT_FILE
#define STANDS (current == mine)
#else
#define STANDS (!marked[mine])
#endif

proctype node() {
  byte mine = 0, lower = 0, checks = 0;
  do
  :: atomic { linked < EPOCHS -> linked++; mine = linked };
#ifdef CURRENT_FILE
     if
     :: current < mine -> current = mine       /* read, then write: two steps */
     :: current >= mine
     fi;
#else
     lower = mine - 1;
     do
     :: lower > 0 -> marked[lower] = true; lower--
     :: lower == 0 -> break
     od;
#endif
     do
     :: checks < CHECKS ->
        atomic {
          checks++;
          if
          :: STANDS -> assert(passed <= mine); passed = mine
          :: else -> break                     /* superseded: leave */
          fi
        }
     :: checks == CHECKS -> break
     :: break                                  /* a crash */
     od;
     atomic { mine = 0; checks = 0 }
  :: linked == EPOCHS -> break
  od
}

init {
  atomic {
    byte i = 0;
    do
    :: i < NODES -> run node(); i++
    :: else -> break
    od
  }
}
